"""Plain scripts of the same job, to compare with: `python -m benchmarks.peers.NAME FOLDER EPOCHS`."""
