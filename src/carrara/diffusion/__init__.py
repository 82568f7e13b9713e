"""The mathematics of diffusion: from noise schedules to samplers; no network, no data, no files."""
