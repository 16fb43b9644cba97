"""What everything is built on: features, stages, detectors, spec strings, errors, files."""
