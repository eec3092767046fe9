"""What a process heeds of where it was started: all that is not named in docs/surroundings.md is set here."""

import os
import sys

LOOPBACK = ("127.0.0.1", "localhost")  # where this pipeline's own servers listen: no proxy is asked for them


def settle() -> None:
    """Make this process, and what it starts, independent of whose shell, notebook or container it was started in.

    Must run before matplotlib, Keras or MLflow are imported.
    """
    os.environ.pop("MPLBACKEND", None)  # a notebook's is a module that need not be here; pictures are only saved
    for name in ("NO_PROXY", "no_proxy"):
        listed = filter(None, os.environ.get(name, "").split(","))
        os.environ[name] = ",".join(dict.fromkeys([*listed, *LOOPBACK]))
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # a terminal that knows ASCII alone gets a question mark for what it cannot show
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]


def use_own_keras_settings() -> None:
    """Have Keras, once it is imported, forget what the user's own ~/.keras/keras.json says of images and numbers."""
    keras = sys.modules.get("keras")
    if keras is not None:
        keras.config.set_image_data_format("channels_last")
        keras.config.set_floatx("float32")
        keras.config.set_epsilon(1e-7)
        keras.config.set_dtype_policy("float32")
