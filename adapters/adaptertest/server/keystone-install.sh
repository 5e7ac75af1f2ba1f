#!/bin/bash
# Installs OpenStack's Keystone, at the versions of keystone-requirements.txt, into an
# environment of Python's in the cache. What is there is not installed again.
set -euo pipefail
requirements=$(cd "$(dirname "$0")" && pwd)/keystone-requirements.txt
version=$(sed -n 's/^keystone==//p' "$requirements")
cache=${XDG_CACHE_HOME:-$HOME/.cache}/pcm/keystone-$version
[ -x "$cache/bin/keystone-wsgi-public" ] && exit
rm -rf "$cache"
python3 -m venv "$cache"
"$cache/bin/pip" install --quiet --disable-pip-version-check --no-compile --no-deps --requirement "$requirements" ||
	{ rm -rf "$cache"; exit 1; }
