"""A worker that serves nothing: it says what it was ordered, and waits for its end."""

import argparse
import json
import os
import signal

parser = argparse.ArgumentParser()
for name in ("--work", "--epoch", "--orders-fd", "--reports-fd"):
    parser.add_argument(name, required=True)
options = parser.parse_args()
with os.fdopen(int(options.orders_fd), "rb") as pipe:
    orders = json.load(pipe)
reports = int(options.reports_fd)
if orders["max_sequence_length"] == 13:
    os.write(reports, b'{"type": "error", "reason": "EXHAUSTED", "message": "no room"}\n')
    raise SystemExit(1)
host = orders["listen"].removesuffix(":0")
os.write(reports, b"not a report\n")
os.write(reports, json.dumps({"type": "ready", "address": f"{host}:4242"}).encode() + b"\n")
signal.pause()
