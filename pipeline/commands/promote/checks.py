"""Preconditions for the promotion of the working tree's model."""

from pipeline.core import paths
from pipeline.core.errors import PipelineError
from pipeline.core.files import md5
from pipeline.repository.dvc import LOCK, recorded_outputs
from pipeline.repository.git import check_repository, commit_of, uncommitted

COMMITTED = (
    *("dvc.yaml", LOCK, paths.PARAMS, paths.COMPOSED, paths.CONF, "pipeline"),
    *(paths.EVALUATION, paths.METRICS, paths.ERRORS, paths.MODEL_CARD, paths.MISTAKES_PICTURE),
)


def check_model() -> str:
    """The MD5 of the model. Raises PipelineError if the model is missing or does not match dvc.lock."""
    known = recorded_outputs().get(str(paths.MODEL))
    if known is None:
        raise PipelineError(f"{LOCK} has no {paths.MODEL}: run `dvc repro`")
    if not paths.MODEL.is_file():
        raise PipelineError(f"{paths.MODEL} is missing: run `dvc checkout` or `dvc pull` to restore it")
    found = md5(paths.MODEL)
    if found != known:
        raise PipelineError(
            f"{paths.MODEL} does not match {LOCK}: its MD5 is {found}, {LOCK} has {known}. "
            "Run `dvc checkout` to restore that one"
        )
    return found


def check_committed() -> str:
    """The commit that contains the model and its reports. Raises PipelineError if any of their files is uncommitted."""
    check_repository()
    commit, changed = commit_of("HEAD"), uncommitted(*COMMITTED)
    if commit is None or changed:
        what = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")  # noqa: PLR2004
        raise PipelineError(f"this model is not committed: commit {what or 'it'} first, then promote")
    return commit
