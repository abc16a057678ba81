"""An emulator of PTX: runs what Triton compiles for Hopper on a CPU's tensors, as sternly as a GPU may."""
