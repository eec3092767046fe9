"""Compose conf/ and params.yaml into composed.yaml, checked before any other stage runs."""

from pipeline import paths
from pipeline.compose.composition import compose_config, to_yaml
from pipeline.files import write_text
from pipeline.stage import run_stage


def run() -> None:
    """Write composed.yaml."""
    config = compose_config(paths.CONF, paths.PARAMS)
    write_text(paths.COMPOSED, to_yaml(config))
    chosen = [config["recipe"], *(config[group]["name"] for group in ("dataset", "model", "optimizer"))]
    print(f"composed {paths.COMPOSED}: recipe {chosen[0]}, {', '.join(chosen[1:])}, seed {config['seed']}")


if __name__ == "__main__":
    run_stage("compose", __doc__, run)
