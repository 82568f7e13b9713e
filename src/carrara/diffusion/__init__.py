"""The mathematics of diffusion: schedules, parameterizations, guidance, samplers; no network, no data, no files."""
