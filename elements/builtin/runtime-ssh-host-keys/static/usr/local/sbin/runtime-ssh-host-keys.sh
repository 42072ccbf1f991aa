#!/bin/sh
# Make the SSH host keys that are missing.
set -eu

for type in rsa ecdsa ed25519; do
    key=/etc/ssh/ssh_host_${type}_key
    if [ ! -s "$key" ]; then
        rm -f "$key" "$key.pub"
        ssh-keygen -q -t "$type" -N '' -f "$key"
    fi
done
