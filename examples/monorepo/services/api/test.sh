#!/bin/sh
# Fails the build when the service does not answer with its channel.
set -eu
/srv/serve.sh | grep -q '^channel=..*$'
