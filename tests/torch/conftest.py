"""Settings of the tests with PyTorch."""

import torch

# Tests run in several processes, and their tensors are small: threads would only get in each
# other's way.
torch.set_num_threads(1)
