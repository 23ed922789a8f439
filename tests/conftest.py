"""Settings of every tier: hypothesis judges results, not the speed of a busy machine."""

from hypothesis import settings

settings.register_profile("tokenclock", deadline=None)
settings.load_profile("tokenclock")
