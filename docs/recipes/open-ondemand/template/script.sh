#!/bin/bash
# The portal keeps the prefix /node/HOST/PORT/, and comes from another machine. Its Host is not the browser's: so the
# portal's own address must be named.
exec jupyter-desktop --host 0.0.0.0 --port "$port" --base-url "/node/$host/$port/" \
  --allow-origin https://ondemand.example.edu
