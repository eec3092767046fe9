"""Serve the registered model on loopback: a page to draw a digit on, and MLflow's own interface below /invocations.

Read when it runs: MLFLOW_TRACKING_URI.
"""

import argparse
import sys

from pipeline import paths
from pipeline.config import load_config
from pipeline.errors import PipelineError
from pipeline.surroundings import settle
from pipeline.tracking.ui import port_number


def main() -> None:
    """Parse the command line and act on it."""
    settle()
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", help="the registered model (default: that of the configured dataset)")
    parser.add_argument("--alias", default="champion", help="which of its versions (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=5001, help="the first port to try (default: %(default)s)")
    arguments = parser.parse_args()
    try:
        from pipeline.serve.server import serve  # takes seconds: not before it is known to be of use

        serve(paths.project_root(), arguments.name or load_config().dataset.name, arguments.alias, arguments.port)
    except PipelineError as error:
        sys.exit(f"serve: {error}")
    except KeyboardInterrupt:
        print()
    except OSError as error:
        sys.exit(f"serve: {error.filename or 'cannot serve'}: {error.strerror or error}")


if __name__ == "__main__":
    main()
