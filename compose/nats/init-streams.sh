#!/bin/sh
# Makes the streams of manifests/ and their first consumers, with the manifests' fields. Run it after
# NATS has started, as often as you like: it leaves alone what exists. Sizes are in bytes.
set -eu

NATS_URL="${NATS_URL:-nats://iot-nats:4222}"
export NATS_URL

echo "Waiting for NATS..."
until nats server check connection >/dev/null 2>&1; do
  sleep 1
done
echo "NATS is ready"

stream() {
  name="$1"
  shift
  nats stream info "$name" >/dev/null 2>&1 ||
    nats stream add "$name" --storage file --replicas 1 --dupe-window 2m "$@" --defaults >/dev/null
  echo "Stream $name ready"
}

consumer() {
  stream="$1" name="$2" function="$3"
  shift 3
  nats consumer info "$stream" "$name" >/dev/null 2>&1 ||
    nats consumer add "$stream" "$name" --pull --ack explicit --deliver all --replay instant \
      --description "function $function" --metadata "runtime.function=$function" "$@" --defaults >/dev/null
  echo "Consumer $name ready"
}

# ─── Device messages ───────────────────────────────────
stream TELEMETRY --subjects "telemetry.>" --retention limits --discard old --max-age 7d \
  --max-bytes "${TELEMETRY_MAX_BYTES:-8000000000}" \
  --description "Device telemetry, enveloped on telemetry.{tenant} or raw on telemetry.{tenant}.{device}"
stream SHADOW --subjects "shadow.>" --retention limits --discard old --max-age 7d --max-bytes 256000000 \
  --description "Requests of devices about their shadows, enveloped on shadow.{tenant} or raw on shadow.{tenant}.{device}.>"
stream COMMANDS --subjects "commands.>" --retention limits --discard old --max-age 7d --max-bytes 256000000 \
  --description "Command acknowledgements, enveloped on commands.{tenant} or raw on commands.{tenant}.{device}.ack"
stream UNMAPPED --subjects "tenant.>" --retention limits --discard old --max-age 7d \
  --max-bytes "${UNMAPPED_MAX_BYTES:-1000000000}" \
  --description "MQTT topics tenant/... that fit none of the known forms"
stream DOWNLINKS --subjects "downlinks.>" --retention limits --discard old --max-age 1d --max-msgs-per-subject 1 \
  --max-msg-size 256000 --max-bytes 256000000 \
  --description "Messages to devices on downlinks.{tenant}.{device}.{kind}, for the doors that pass them on"
stream DEVICE_EVENTS --subjects "device_events.>" --retention interest --discard new --max-age 7d \
  --max-msg-size 256000 --max-bytes "${DEVICE_EVENTS_MAX_BYTES:-512000000}" \
  --description "What the platform finds out of devices on device_events.{tenant}.{device}.{kind}, for routes"

# ─── Delivery ──────────────────────────────────────────
# A work queue that refuses when it is full: jobs then wait in the outbox.
stream ROUTES --subjects "routes.>" --retention work --discard new \
  --max-bytes "${ROUTES_MAX_BYTES:-2000000000}" \
  --description "Delivery jobs on routes.{tenant}.{type}; the form routes.{tenant} is dispatched by its route's type"
stream NOTICES --subjects "notices.*.*" --retention limits --discard old --max-age 30d --max-msgs-per-subject 1000 \
  --max-bytes "${NOTICES_MAX_BYTES:-256000000}" \
  --description "Notices to tenants on notices.{tenant}.{kind}, such as endpoint_disabled"
stream REPUBLISHED --subjects "republish.>" --retention limits --discard old --max-age 1d \
  --max-bytes "${REPUBLISHED_MAX_BYTES:-256000000}" \
  --description "What routes of type nats_republish publish on this host's own server"
stream POLLED --subjects "polled.*.*" --retention limits --discard new --max-age 7d \
  --max-msgs-per-subject 20000 --max-msg-size 80000 --max-bytes "${POLLED_MAX_BYTES:-1000000000}" \
  --description "Jobs of routes of type poll on polled.{tenant}.{route}, from which receivers read them over HTTP"

# ─── Consumers ─────────────────────────────────────────
# The host makes all others when it starts. --max-deliver: as many as the function's retries.
consumer TELEMETRY ingest-workers ingest --wait 20s --max-pending 50000 --max-deliver 20
consumer SHADOW ingest-shadow shadow --wait 30s --max-pending 5000 --max-deliver 20
consumer COMMANDS ingest-commands commands --wait 30s --max-pending 5000 --max-deliver 20
consumer ROUTES route-delivery deliver_webhook --filter "routes.*.webhook" \
  --wait 60s --max-pending 10000 --max-deliver 10

echo "All streams and consumers initialized"
