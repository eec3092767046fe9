"""Serve the registered model on loopback: a page for drawing digits, and MLflow's scoring API at /invocations.

Environment variables: MLFLOW_TRACKING_URI.
"""

from pipeline.commands.parser import command_parser, one_line_errors
from pipeline.commands.ports import port_number
from pipeline.core import paths
from pipeline.core.process.surroundings import settle
from pipeline.core.validation import load_config


def main() -> None:
    """Parse the command line and serve the model."""
    settle()
    parser = command_parser("serve", __doc__)
    parser.add_argument("--name", help="name of the registered model (default: the name of the configured dataset)")
    parser.add_argument("--alias", default="champion", help="alias of the version to serve (default: %(default)s)")
    parser.add_argument("--port", type=port_number, default=5001, help="first port to try (default: %(default)s)")
    arguments = parser.parse_args()
    with one_line_errors("serve"):
        from pipeline.commands.serve.server import serve  # takes seconds: only after the arguments are valid

        serve(paths.project_root(), arguments.name or load_config().dataset.name, arguments.alias, arguments.port)


if __name__ == "__main__":
    main()
