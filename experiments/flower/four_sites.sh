#!/usr/bin/env bash
# From nothing to a federation of four sites on this machine, with TLS and a key for each site: the README's commands.
# Needs fedmoe[flower] in $VENV; stops all it has started. PORT and FOLDER may be set.
set -euo pipefail
cd "$(dirname "$0")/../.."
VENV=${VENV:-.venv-flower} PORT=${PORT:-9800} FOLDER=${FOLDER:-federation}
export PATH="$(cd "$VENV/bin" && pwd):$PATH" PYTHONPATH="$PWD" OMP_NUM_THREADS=1
export FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1
COMMON="--config configs/flower/four_sites.yaml"
ENGINE="--config configs/flower/server.yaml --engine.address 127.0.0.1:$PORT --engine.certificate $FOLDER/server/ca.pem \
    --engine.secret $FOLDER/server/secret --engine.signing $FOLDER/server/signing.key --engine.keys $FOLDER/server/keys.json"
STARTED=()
trap 'kill "${STARTED[@]}" 2>/dev/null || true; wait 2>/dev/null || true' EXIT

python -m fedmoe.cli engine credentials $COMMON --folder "$FOLDER"

flower-superlink --host 127.0.0.1 --port "$PORT" --isolation process --database "$FOLDER/superlink.db" \
    --superexec-auth-secret-file "$FOLDER/server/secret" --enable-supernode-auth \
    --ssl-certfile "$FOLDER/server/server.pem" --ssl-keyfile "$FOLDER/server/server.key" \
    --ssl-ca-certfile "$FOLDER/server/ca.pem" > "$FOLDER/superlink.log" 2>&1 &
STARTED+=($!)
until grep -q "Uvicorn running" "$FOLDER/superlink.log"; do sleep 0.5; done

python -m fedmoe.cli engine register $COMMON $ENGINE

for i in 0 1 2 3; do
    site="$FOLDER/site-$i" runtime=$((PORT + 10 + i))
    flower-supernode --superlink "127.0.0.1:$PORT" --root-certificates "$site/ca.pem" --isolation process \
        --auth-supernode-private-key "$site/key" --host 127.0.0.1 --port "$runtime" \
        --superexec-auth-secret-file "$site/secret" > "$site/supernode.log" 2>&1 &
    STARTED+=($!)
    python -m fedmoe.cli client $COMMON --client "$i" --supernode "127.0.0.1:$runtime" --secret "$site/secret" \
        --server_key "$site/server.pub" --states "$site/states" > "$site/client.log" 2>&1 &
    STARTED+=($!)
done

python -m fedmoe.cli fit $COMMON $ENGINE "$@"
python -m fedmoe.cli engine status $COMMON $ENGINE
