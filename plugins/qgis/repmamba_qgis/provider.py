"""The provider: the group of the toolbox, with the setting that says where repmamba is."""

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig, Setting
from qgis.core import QgsProcessingProvider
from qgis.PyQt.QtGui import QIcon

from .upscale import COMMAND, Upscale

ICON = Path(__file__).with_name("icon.svg")


class Provider(QgsProcessingProvider):
    """Rep-Mamba in the toolbox."""

    def id(self):
        """The first part of the algorithm's name, repmamba:upscale."""
        return "repmamba"

    def name(self):
        """As the toolbox shows it."""
        return "Rep-Mamba"

    def longName(self):
        """As the list of providers shows it."""
        return "Rep-Mamba super-resolution"

    def icon(self):
        """Beside the name."""
        return QIcon(str(ICON))

    def load(self):
        """Add the setting, and the algorithm."""
        ProcessingConfig.settingIcons[self.name()] = self.icon()
        ProcessingConfig.addSetting(
            Setting(
                self.name(),
                COMMAND,
                "Command of repmamba (empty: the one on the PATH)",
                "",
                valuetype=Setting.FILE,
            )
        )
        ProcessingConfig.readSettings()
        self.refreshAlgorithms()
        return True

    def unload(self):
        """Take the setting away."""
        ProcessingConfig.removeSetting(COMMAND)

    def loadAlgorithms(self):
        """There is one."""
        self.addAlgorithm(Upscale())

    def supportedOutputRasterLayerExtensions(self):
        """What repmamba writes, the first by default."""
        return ["tif", "png", "jpg"]
