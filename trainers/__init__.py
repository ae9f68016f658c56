"""What runs inside a worker: data, network, loss, loop, inference. Knows torch and nnU-Net; knows nothing of Ray or MLflow."""
