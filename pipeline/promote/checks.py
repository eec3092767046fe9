"""What must hold of the working tree before its model may be promoted."""

from pathlib import Path

from pipeline import paths
from pipeline.errors import PipelineError
from pipeline.files import md5
from pipeline.repository import LOCK, check_repository, commit_of, in_folder, outputs, read_lock, uncommitted

COMMITTED = (
    *("dvc.yaml", LOCK, paths.PARAMS, paths.COMPOSED, paths.CONF, "pipeline"),
    *(paths.METRICS, paths.ERRORS, paths.MODEL_CARD, paths.MISTAKES_PICTURE),
)


def check_model() -> str:
    """The MD5 of the model. Raises PipelineError if dvc.lock has another one, or none."""
    known = outputs(read_lock(in_folder(Path()), "in the working tree")).get(str(paths.MODEL))
    if known is None:
        raise PipelineError(f"{LOCK} has no {paths.MODEL}: run `dvc repro`")
    if not paths.MODEL.is_file():
        raise PipelineError(f"{paths.MODEL} is missing: `dvc checkout` or `dvc pull` brings it back")
    found = md5(paths.MODEL)
    if found != known:
        raise PipelineError(
            f"{paths.MODEL} is not the one of {LOCK}: its MD5 is {found}, {LOCK} has {known}. "
            "`dvc checkout` brings that one back"
        )
    return found


def check_committed() -> str:
    """The commit that has the model and its reports as they are. Raises PipelineError if there is none."""
    check_repository()
    commit, changed = commit_of("HEAD"), uncommitted(*COMMITTED)
    if commit is None or changed:
        what = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")  # noqa: PLR2004
        raise PipelineError(f"no commit has this model yet: commit {what or 'it'} first, then promote")
    return commit
