"""The notebook as a plain Keras script: two dense layers with dropout, RMSprop, the test images as validation set."""

import keras

from benchmarks.peers.keras_clock import Clock
from benchmarks.peers.mnist import arguments, load, tell

folder, epochs = arguments()
x_train, y_train = load(folder, "train")
x_test, y_test = load(folder, "t10k")
x_train, x_test = x_train.reshape(-1, 784), x_test.reshape(-1, 784)
y_train, y_test = keras.utils.to_categorical(y_train, 10), keras.utils.to_categorical(y_test, 10)
model = keras.Sequential(
    [
        keras.Input((784,)),
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(512, activation="relu"),
        keras.layers.Dropout(0.2),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
model.compile(loss="categorical_crossentropy", optimizer=keras.optimizers.RMSprop(), metrics=["accuracy"])
clock, held = Clock(), (x_test, y_test)
model.fit(x_train, y_train, batch_size=128, epochs=epochs, verbose=2, validation_data=held, callbacks=[clock])
tell(clock.seconds, *model.evaluate(x_test, y_test, verbose=0))
