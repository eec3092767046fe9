"""The network and hyperparameters of PyTorch's MNIST example: 1,199,882 parameters, Adadelta, batches of 64.

https://github.com/pytorch/examples/tree/main/mnist trains for 14 epochs. Its loader decodes and normalizes image by
image; here all images are one normalized tensor, so that the benchmark measures the network and not the loader.
"""

import time

import torch
from torch import nn

from benchmarks.peers.mnist import arguments, load, tell

folder, epochs = arguments()
(x_train, y_train), (x_test, y_test) = (
    ((torch.from_numpy(images)[:, None] - 0.1307) / 0.3081, torch.from_numpy(labels).long())
    for images, labels in (load(folder, "train"), load(folder, "t10k"))
)
model = nn.Sequential(
    nn.Conv2d(1, 32, 3),
    nn.ReLU(),
    nn.Conv2d(32, 64, 3),
    nn.ReLU(),
    nn.MaxPool2d(2),
    nn.Dropout(0.25),
    nn.Flatten(),
    nn.Linear(9216, 128),
    nn.ReLU(),
    nn.Dropout(0.5),
    nn.Linear(128, 10),
)
optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
criterion = nn.CrossEntropyLoss()
epoch_seconds = []
for epoch in range(epochs):
    begun = time.perf_counter()
    model.train()
    for batch in torch.randperm(len(x_train)).split(64):
        optimizer.zero_grad()
        criterion(model(x_train[batch]), y_train[batch]).backward()
        optimizer.step()
    scheduler.step()
    epoch_seconds.append(time.perf_counter() - begun)
    print(f"epoch {epoch + 1}/{epochs}: {epoch_seconds[-1]:.1f} s", flush=True)
model.eval()
with torch.no_grad():
    logits = torch.cat([model(part) for part in x_test.split(1000)])
tell(epoch_seconds, criterion(logits, y_test).item(), (logits.argmax(1) == y_test).double().mean().item())
