"""Plain scripts for the same task, to compare with the recipes: `python -m benchmarks.peers.NAME FOLDER EPOCHS`."""
