"""A busy machine is no fault of a test: hypothesis judges neither the time of an example nor that of drawing it."""

from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
