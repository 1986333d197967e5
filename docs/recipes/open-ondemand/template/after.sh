# Sourced while script.sh runs; when it returns, the portal shows the button.
wait_until_port_used "$host:$port" 60
