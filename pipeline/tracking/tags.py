"""The names of tags that more than one side reads or writes."""

COMMIT = "git.commit"  # of a run and a version: the commit that it comes from
DVC_HASH = "dvc.model"  # of a run and a version: the MD5 by which DVC knows the network
ACCURACY = "test.accuracy"  # of a version
