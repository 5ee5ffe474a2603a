"""The plugin: it adds a provider to Processing, and takes it away again."""

from qgis.core import QgsApplication

from .provider import Provider


class Plugin:
    """What QGIS loads and unloads."""

    def __init__(self):
        self._provider = None

    def initProcessing(self):
        """Add the provider; all that qgis_process calls, which has no window."""
        self._provider = Provider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self):
        """Add the provider where there is a window."""
        self.initProcessing()

    def unload(self):
        """Take it away."""
        QgsApplication.processingRegistry().removeProvider(self._provider)
