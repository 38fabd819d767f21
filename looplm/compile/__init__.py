"""What a run needs and costs on a machine, from its compiled training step; no device is needed."""
