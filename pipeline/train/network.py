"""From configuration to a network and an optimizer."""

from typing import Any

import keras

from pipeline.config import TARGET_KEY, Model, Optimizer, Training
from pipeline.errors import PipelineError
from pipeline.train.augmentation import check_augmentation
from pipeline.train.components import build, check_layer, check_names, explained

WHITE = 255
LOGITS = "logits"
MEMBER = "member_"
RESERVED = {"images", "scale", "channel", LOGITS, "probabilities"}  # names of layers


def build_network(model: Model, image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """An untrained network from grey images (N, height, width) in 0…255 to probabilities (N, classes).

    The probabilities are float32 whatever the precision of the rest. They are the mean over the members, each a model
    inside the network, and over the views of the image that each of them gets.
    Raises PipelineError if a layer refuses its arguments or does not fit the one before it, or if images would be
    shifted away.
    """
    if model.test_time_shift >= min(image_shape):
        size = "×".join(map(str, image_shape))
        raise PipelineError(
            f"model.test_time_shift: a shift by {model.test_time_shift} leaves nothing of {size} pixels"
        )
    images = keras.Input(image_shape, dtype="uint8", name="images")
    if model.members == 1 and not model.test_time_shift:
        logits = connect(model, images, classes)
    else:
        names = [f"{MEMBER}{number}" for number in range(1, model.members + 1)]
        members = [keras.Model(images, connect(model, images, classes), name=name) for name in names]
        views = shifted(images, model.test_time_shift)
        together = mix(keras.ops.stack([member(view) for member in members for view in views], axis=1))
        logits = keras.layers.Identity(dtype="float32", name=LOGITS)(together)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(images, probabilities, name=model.name)


def connect(model: Model, images: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """The logits (N, classes) that new layers make of images. Scaling to [0, 1] is the first of them."""
    tensor = keras.layers.Rescaling(1 / WHITE, name="scale")(images)
    tensor = keras.layers.Reshape((*images.shape[1:], 1), name="channel")(tensor)
    for key, layer in build_layers(model):
        with explained(f"{key}: does not fit what comes before it"):
            tensor = layer(tensor)
    _, *features = tensor.shape
    if len(features) != 1:
        raise PipelineError(f"model.layers: end in shape {tuple(features)}; end with keras.layers.Flatten or a pooling")
    with explained("model: its output does not fit the final Dense layer"):
        return keras.layers.Dense(classes, dtype="float32", name=LOGITS)(tensor)


def shifted(images: Any, pixels: int) -> list[Any]:
    """Images (N, height, width) as they are, and in the eight places around that are so many pixels away, if any."""
    if not pixels:
        return [images]
    _, height, width = images.shape
    padded = keras.ops.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    starts = (pixels, 0, 2 * pixels)
    return [padded[:, y : y + height, x : x + width] for y in starts for x in starts]


def mix(logits: Any) -> Any:
    """From the logits of each member (N, members, classes) to logits of their mean probabilities (N, classes)."""
    return keras.ops.logsumexp(keras.ops.log_softmax(logits), axis=1)


def members_of(network: keras.Model) -> list[keras.Model]:
    """The parts of a network that learn each for itself, from images to logits, with the network's own weights."""
    members = [part for part in network.layers if isinstance(part, keras.Model) and part.name.startswith(MEMBER)]
    return members or [keras.Model(network.input, network.get_layer(LOGITS).output, name=network.name)]


def build_layers(model: Model) -> list[tuple[str, keras.Layer]]:
    """The network's own layers in order, each with the key that it comes from."""
    if model.builder is not None:
        layers = build(model.builder, "model.builder")
        if not isinstance(layers, list):
            raise PipelineError(f"model.builder: {model.builder[TARGET_KEY]} must return a list of Keras layers")
        built = [(f"model.builder[{index}]", layer) for index, layer in enumerate(layers)]
    else:
        keyed = [(f"model.layers.{index}", spec) for index, spec in enumerate(model.layers)]
        built = [(key, build(spec, key)) for key, spec in keyed]
    for key, layer in built:
        check_layer(layer, key)
    check_names(built, RESERVED, MEMBER)
    return built


def build_augmentation(training: Training, image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """The layers that training images (N, height, width) pass before the network.

    Raises PipelineError if one refuses its arguments, or cannot be used on such images.
    """
    built = [build(spec, f"training.augmentation.{index}") for index, spec in enumerate(training.augmentation)]
    for index, layer in enumerate(built):
        if not isinstance(layer, keras.Layer):
            target = training.augmentation[index][TARGET_KEY]
            raise PipelineError(f"training.augmentation.{index}: {target} is not a Keras layer")
    check_augmentation(built, image_shape)
    return built


def build_optimizer(optimizer: Optimizer, training: Training, updates: int) -> keras.optimizers.Optimizer:
    """The Keras optimizer that the configuration names, for a training of so many updates.

    Raises PipelineError if it refuses its arguments.
    """
    built = build(optimizer.model_dump(by_alias=True), "optimizer")
    if not isinstance(built, keras.optimizers.Optimizer):
        raise PipelineError(f"optimizer: {optimizer.target} is no optimizer; keras.optimizers has them")
    if training.decay == "cosine":
        rise = min(round(updates * training.warm_up), updates - 1)  # the last one is for the fall
        built.learning_rate = cosine_schedule(optimizer.learning_rate, rise, updates)
    return built


def cosine_schedule(peak: float, rise: int, updates: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Up to `peak` in a line over the first `rise` of all updates, then down to 0 in half a cosine."""
    if not rise:
        return keras.optimizers.schedules.CosineDecay(peak, updates)
    return keras.optimizers.schedules.CosineDecay(0.0, updates - rise, warmup_target=peak, warmup_steps=rise)
