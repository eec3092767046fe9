"""The names of tags that several modules read or write."""

COMMIT = "git.commit"  # of runs and versions: the commit of their code
USER = "mlflow.user"  # of runs: the name of the user on the machine that trained
DVC_HASH = "dvc.model"  # of runs and versions: DVC's MD5 of the network
ACCURACY = "test.accuracy"  # of versions
CHAMPION, PREVIOUS = "champion", "previous"  # aliases of versions
TRAINING = "training"  # of runs: a random value, by which an interrupted training finds its run
