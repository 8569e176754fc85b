"""The network as a list of steps: a recorded forward pass, and what each kind of step does."""
