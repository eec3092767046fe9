"""Convert the raw files to training, validation and test images, and report their statistics.

Gray levels are stored as bytes. The network's first layer scales them to [0, 1], so that a served model scales its
input in the same way as in training.
"""

from pipeline.core import paths
from pipeline.core.dataset import Split, save_split
from pipeline.core.files import replacing
from pipeline.core.process.stage import run_stage
from pipeline.core.records import DataStatistics
from pipeline.core.validation import load_config
from pipeline.repository.dvc import check_upstream
from pipeline.stages.preprocess.idx import read_pair
from pipeline.stages.preprocess.report import count_duplicates, describe_split
from pipeline.stages.preprocess.samples import draw_samples
from pipeline.stages.preprocess.split import hold_out


def run() -> None:
    """Write data/prepared and reports/data."""
    config = load_config(stage="preprocess")
    check_upstream("preprocess")
    classes = config.dataset.classes
    raw = paths.RAW_FILES
    everything = Split(*read_pair(raw["train_images"], raw["train_labels"], classes))
    test = Split(*read_pair(raw["test_images"], raw["test_labels"], classes))
    kept, held_out = hold_out(everything.labels, config.training.validation_fraction, config.seed)
    train = Split(everything.images[kept], everything.labels[kept])
    validation = Split(everything.images[held_out], everything.labels[held_out])
    if config.training.validate_on == "test":  # the only case in which train sees the test images
        validation = test

    save_split(paths.TRAIN, train)
    save_split(paths.VALIDATION, validation)
    save_split(paths.TEST, test)
    DataStatistics(
        dataset=config.dataset.name,
        train=describe_split(train, classes),
        validation=describe_split(validation, classes),
        test=describe_split(test, classes),
        duplicates=count_duplicates(everything, test),
    ).write(paths.STATISTICS)
    with replacing(paths.SAMPLES_PICTURE) as temporary:
        draw_samples(train, classes).save(temporary)
    print(
        f"prepared {len(train.images):,} training, {len(validation.images):,} validation "
        f"(validate_on: {config.training.validate_on}) and {len(test.images):,} test images"
    )


if __name__ == "__main__":
    run_stage("preprocess", __doc__, run, cleared=True)
