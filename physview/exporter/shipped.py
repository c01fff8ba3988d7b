# SPDX-License-Identifier: GPL-2.0-or-later
"""The files for Prometheus and Grafana that come with physview. See scripts/monitoring.py."""

from __future__ import annotations

import os

SHIPPED = {
    "alerts": "alerts.yml",
    "dashboard": "dashboard.json",
    "prometheus": "prometheus.yml",
    "unit": "physview-exporter.service",
}
"""The files by the name with which `exporter --print` prints them."""

FOLDER = os.path.join(os.path.dirname(__file__), "monitoring")


def read_shipped(name: str) -> str:
    """Read one of SHIPPED."""
    with open(os.path.join(FOLDER, SHIPPED[name]), encoding="utf-8") as file:
        return file.read()
