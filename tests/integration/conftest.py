"""No Ray of these tests exports metrics: set before any of them imports ray, which reads it once."""

import os

from orchestrator.cluster.service_environment import QUIET

os.environ |= {name: value for name, value in QUIET.items() if name.startswith("RAY_enable_")}
