#!/bin/sh
# Answers with its configuration.
cat "${CONF:-/srv/api.conf}"
