"""What methods share: losses and their parts, tensors in and tensors out. No term knows a method."""
