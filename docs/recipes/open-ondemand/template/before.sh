# Sourced by the portal's job script, which has defined these functions and $host.
port=$(find_port "$host")
password=$(create_passwd 32)
export host port
# By the environment, which only this user can read; on the command line all users of the node could.
export JUPYTER_DESKTOP_TOKEN="$password"
