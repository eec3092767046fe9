"""Convert the raw files to training, validation and test images, and report their statistics.

Gray levels are stored as bytes. The network's first layer scales them to [0, 1], so that a served model scales its
input in the same way as in training.
"""

from pipeline import paths
from pipeline.config import load_config
from pipeline.dataset import Split, save_split
from pipeline.files import replacing, write_json
from pipeline.preprocess.idx import read_pair
from pipeline.preprocess.report import count_duplicates, describe_split
from pipeline.preprocess.samples import draw_samples
from pipeline.preprocess.split import hold_out
from pipeline.stage import run_stage


def run() -> None:
    """Write data/prepared, reports/data.json and the figure with samples."""
    config = load_config()
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
    report = {
        name: describe_split(split, classes)
        for name, split in (("train", train), ("validation", validation), ("test", test))
    }
    write_json(
        paths.DATA_REPORT, {"dataset": config.dataset.name, **report, "duplicates": count_duplicates(everything, test)}
    )
    with replacing(paths.SAMPLES_PICTURE) as temporary:
        draw_samples(train, classes).save(temporary)
    print(
        f"prepared {len(train.images):,} training, {len(validation.images):,} validation "
        f"(validate_on: {config.training.validate_on}) and {len(test.images):,} test images"
    )


if __name__ == "__main__":
    run_stage("preprocess", __doc__, run, cleared=True)
