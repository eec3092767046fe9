"""The plain Keras script of the notebook that the pipeline is compared with: the same job, nothing around it."""

PLAIN = """
import gzip, json, sys, time
import keras
import numpy as np

folder, epochs = sys.argv[1], int(sys.argv[2])

def read(name, offset):
    with gzip.open(f"{folder}/{name}") as file:
        return np.frombuffer(file.read(), np.uint8, offset=offset)

class Clock(keras.callbacks.Callback):
    seconds = []
    def on_epoch_begin(self, epoch, logs=None):
        self.begun = time.perf_counter()
    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.begun)

x_train = read("train-images-idx3-ubyte.gz", 16).reshape(60000, 784).astype("float32") / 255
x_test = read("t10k-images-idx3-ubyte.gz", 16).reshape(10000, 784).astype("float32") / 255
y_train = keras.utils.to_categorical(read("train-labels-idx1-ubyte.gz", 8), 10)
y_test = keras.utils.to_categorical(read("t10k-labels-idx1-ubyte.gz", 8), 10)
model = keras.Sequential([
    keras.Input((784,)),
    keras.layers.Dense(512, activation="relu"),
    keras.layers.Dropout(0.2),
    keras.layers.Dense(512, activation="relu"),
    keras.layers.Dropout(0.2),
    keras.layers.Dense(10, activation="softmax"),
])
model.compile(loss="categorical_crossentropy", optimizer=keras.optimizers.RMSprop(), metrics=["accuracy"])
clock = Clock()
held = (x_test, y_test)
model.fit(x_train, y_train, batch_size=128, epochs=epochs, verbose=2, validation_data=held, callbacks=[clock])
loss, accuracy = model.evaluate(x_test, y_test, verbose=0)
print(json.dumps({"epoch_seconds": clock.seconds, "loss": loss, "accuracy": accuracy}))
"""
