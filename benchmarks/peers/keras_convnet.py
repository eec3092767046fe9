"""The network and hyperparameters of Keras's convolutional MNIST example: 34,826 parameters, Adam, 10 % held out.

https://keras.io/examples/vision/mnist_convnet/ trains for 15 epochs.
"""

import keras

from benchmarks.peers.keras_clock import Clock
from benchmarks.peers.mnist import arguments, load, tell

folder, epochs = arguments()
x_train, y_train = load(folder, "train")
x_test, y_test = load(folder, "t10k")
y_train, y_test = keras.utils.to_categorical(y_train, 10), keras.utils.to_categorical(y_test, 10)
model = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Conv2D(32, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Conv2D(64, 3, activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dropout(0.5),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
clock = Clock()
x_train, x_test = x_train[..., None], x_test[..., None]
model.fit(x_train, y_train, batch_size=128, epochs=epochs, verbose=2, validation_split=0.1, callbacks=[clock])
tell(clock.seconds, *model.evaluate(x_test, y_test, verbose=0))
