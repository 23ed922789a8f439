"""Settings of every tier: hypothesis judges results, not the speed of a busy machine; and runs side by side don't want
one port for their metrics.
"""

import os

from hypothesis import settings

settings.register_profile("tokenclock", deadline=None)
settings.load_profile("tokenclock")
os.environ["TOKENCLOCK_METRICS_PORT"] = "off"  # a test that looks at them says a port
