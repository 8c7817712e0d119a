#!/usr/bin/env bash
# Starts a Prefect server that asks for a password, for more than one person or machine: see docs/operations.md.
set -euo pipefail

usage() {
    cat <<'USAGE'
usage: secure-server.sh [--host ADDRESS] [--port NUMBER] [--url URL] [--auth-file FILE]

  --host ADDRESS    the address to listen on; 127.0.0.1 unless given, so that only a proxy on this machine reaches it
  --port NUMBER     the port to listen on; 4200 unless given
  --url URL         what people type into the browser, https://prefect.example.org; http only for this machine itself,
                    which is also the default: http://127.0.0.1:PORT
  --auth-file FILE  a file with one line USER:PASSWORD that only its owner may read (mode 600)

Read from the environment, never from the command line, where every user of the machine can see it:
  PREFECT_SERVER_API_AUTH_STRING          USER:PASSWORD, where there is no --auth-file
  PREFECT_SERVER_DATABASE_CONNECTION_URL  postgresql+asyncpg://USER:PASSWORD@HOST/DATABASE; SQLite in PREFECT_HOME if unset

A good password: openssl rand -hex 24
USAGE
}

refuse() {
    echo "secure-server.sh: $1" >&2
    exit 1
}

host=127.0.0.1
port=4200
url=
auth_file=
while (($#)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --host | --port | --url | --auth-file)
        (($# > 1)) || refuse "$1 needs a value"
        case $1 in
        --host) host=$2 ;;
        --port) port=$2 ;;
        --url) url=$2 ;;
        --auth-file) auth_file=$2 ;;
        esac
        shift 2
        ;;
    *)
        usage >&2
        exit 2
        ;;
    esac
done

[[ $port =~ ^[0-9]{1,5}$ ]] && ((10#$port >= 1 && 10#$port <= 65535)) || refuse "--port $port: expected 1 to 65535"

case $host in
127.* | localhost | ::1) url=${url:-http://127.0.0.1:$port} ;;
esac
[[ $url ]] || refuse "--host $host: give --url too, the https address of the proxy in front"
url=${url%/}
[[ $url =~ ^https?://[^/@,*[:space:]]+$ ]] ||
    refuse "--url $url: expected one origin such as https://prefect.example.org, without a path"
[[ $url == https://* || $url =~ ^http://(127\.0\.0\.1|localhost|\[::1\])(:[0-9]+)?$ ]] ||
    refuse "--url $url: over plain http the password can be read on the way; put a proxy with TLS in front, and give https"

auth=${PREFECT_SERVER_API_AUTH_STRING:-}
if [[ $auth_file ]]; then
    [[ -f $auth_file && -r $auth_file ]] || refuse "$auth_file: no such file, or not yours to read"
    # ls and not stat, whose options differ between systems; a last + would be an access list.
    [[ $(LC_ALL=C ls -ldL -- "$auth_file") =~ ^-r[w-]-------[.@\ ] ]] ||
        refuse "$auth_file: others may read it; run chmod 600 on it"
    auth=$(<"$auth_file")
fi
[[ $auth ]] || refuse "no password: set PREFECT_SERVER_API_AUTH_STRING to USER:PASSWORD, or give --auth-file"
[[ $auth =~ ^[^:]+:.+$ ]] || refuse "the auth string has no colon: expected USER:PASSWORD"
ascii() {
    local LC_ALL=C
    [[ $1 =~ ^[!-~]+$ ]]
}
ascii "$auth" || refuse "the auth string has spaces, several lines or letters beyond ASCII, which Prefect cannot compare"
password=${auth#*:}
((${#password} >= 16)) || refuse "the password has ${#password} characters, expected at least 16: openssl rand -hex 24 makes one"
[[ ! ${password,,} =~ pass|secret|admin|prefect|changeme|example|1234567|qwerty ]] ||
    refuse "the password looks like an example: openssl rand -hex 24 makes a good one"

database=${PREFECT_SERVER_DATABASE_CONNECTION_URL:-}
[[ -z $database || $database == postgresql+asyncpg://* || $database == sqlite+aiosqlite://* ]] ||
    refuse "PREFECT_SERVER_DATABASE_CONNECTION_URL begins with ${database%%:*}:, expected postgresql+asyncpg: or sqlite+aiosqlite:"

command -v prefect >/dev/null || refuse "there is no prefect on PATH: activate the environment that Latebloom is installed in"

export PREFECT_SERVER_API_AUTH_STRING=$auth
export PREFECT_SERVER_API_CSRF_PROTECTION_ENABLED=true
export PREFECT_SERVER_API_CORS_ALLOWED_ORIGINS=$url
export PREFECT_SERVER_UI_API_URL=$url/api
export PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT=false
# In memory, the slots that runs hold of a limit would stay taken when the server dies.
export PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE=prefect.server.concurrency.lease_storage.filesystem
export PREFECT_SERVER_ANALYTICS_ENABLED=false
export DO_NOT_TRACK=1

echo "open      $url"
echo "listens   $host:$port"
echo "database  $([[ $database == postgresql* ]] && echo PostgreSQL || echo 'SQLite: good for one machine')"
exec prefect server start --host "$host" --port "$port"
