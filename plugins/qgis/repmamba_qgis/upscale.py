"""The algorithm of the toolbox: a dialog's answers become one call of the command."""

from pathlib import Path

from processing.core.ProcessingConfig import ProcessingConfig
from qgis.core import (
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingParameterBoolean,
    QgsProcessingParameterDefinition,
    QgsProcessingParameterEnum,
    QgsProcessingParameterExtent,
    QgsProcessingParameterRasterDestination,
    QgsProcessingParameterRasterLayer,
    QgsProcessingParameterString,
)
from qgis.PyQt.QtGui import QIcon

from .command import CommandError, Request, find_command, percent, run

COMMAND = "REPMAMBA_COMMAND"
SCALES = ("2", "3", "4")
HELP = """
Enlarges a raster two, three or four times with Rep-Mamba, a light state-space network: same place
on the map, all bands, same type of number, missing pixels kept.

What appears is what the network holds likely; it learnt from optical imagery taken from the air.
Made small again, the result of a raster with a place on the map is the raster it came from.

<b>Only this part</b>: leave it empty for all of the layer. Large rasters take a while: 0.5 to 1
million pixels of the result a second for each processor core. A run that is stopped goes on when
it is started again with the same answers and the same output file.

<b>Red, green, blue</b>: numbers of bands, such as 4,3,2, where the file does not say which they
are. These three go through the network together, each other band alone, as grey.

<b>Range</b>: what is black and white to the network, such as 0,4000; robust takes nearly all
values of the layer.

<b>Expected error</b>: a second raster, which says for each pixel how large an error is to be
expected, for x4 alone. Eight times the work.
"""


class Upscale(QgsProcessingAlgorithm):
    """repmamba:upscale."""

    def name(self):
        """In scripts, after the provider's."""
        return "upscale"

    def displayName(self):
        """In the toolbox."""
        return "Enlarge a raster"

    def tags(self):
        """What it is found by."""
        return ["super-resolution", "resolution", "upscale", "enlarge", "resample", "mamba"]

    def icon(self):
        """Beside the name."""
        return QIcon(str(Path(__file__).with_name("icon.svg")))

    def shortHelpString(self):
        """Beside the dialog."""
        # QGIS takes each end of a line for one of a paragraph.
        return "".join(
            f"<p>{' '.join(paragraph.splitlines())}</p>" for paragraph in HELP.strip().split("\n\n")
        )

    def createInstance(self):
        """A new one for each run."""
        return Upscale()

    def initAlgorithm(self, configuration=None):
        """The dialog."""
        self.addParameter(QgsProcessingParameterRasterLayer("INPUT", "Raster"))
        self.addParameter(
            QgsProcessingParameterEnum("SCALE", "Times larger", SCALES, defaultValue=2)
        )
        self.addParameter(QgsProcessingParameterExtent("EXTENT", "Only this part", optional=True))
        for name, shown in (
            ("RGB", "Red, green, blue: numbers of bands"),
            ("RANGE", "Range: low,high or robust or type"),
            ("WEIGHTS", "Weights: a name such as x4, or a file"),
        ):
            self._add_advanced(QgsProcessingParameterString(name, shown, optional=True))
        self._add_advanced(
            QgsProcessingParameterBoolean(
                "ENSEMBLE",
                "Mean of eight flips and rotations: better, eight times the work",
                defaultValue=False,
            )
        )
        self.addParameter(QgsProcessingParameterRasterDestination("OUTPUT", "Enlarged"))
        self.addParameter(
            QgsProcessingParameterRasterDestination(
                "CONFIDENCE", "Expected error", optional=True, createByDefault=False
            )
        )

    def canExecute(self):
        """Whether repmamba is there, before anybody fills in the dialog."""
        try:
            find_command(ProcessingConfig.getSetting(COMMAND) or "")
        except CommandError as error:
            return False, str(error)
        return True, ""

    def processAlgorithm(self, parameters, context, feedback):
        """Run the command; its lines go into the log of the dialog."""
        request = self._request(parameters, context)
        feedback.setProgressText("Starting repmamba; the first lines take a few seconds.")

        def told(line):
            done = percent(line)
            if done is None:
                feedback.pushInfo(line)
            else:
                feedback.setProgress(done)

        try:
            command = find_command(ProcessingConfig.getSetting(COMMAND) or "")
            run([command, *request.arguments()], told, feedback.isCanceled)
        except CommandError as error:
            raise QgsProcessingException(str(error)) from error
        outputs = {"OUTPUT": request.target}
        return (
            outputs if request.confidence is None else {**outputs, "CONFIDENCE": request.confidence}
        )

    def _request(self, parameters, context):
        layer = self.parameterAsRasterLayer(parameters, "INPUT", context)
        if layer is None:
            raise QgsProcessingException(self.invalidRasterError(parameters, "INPUT"))
        if layer.providerType() != "gdal":
            raise QgsProcessingException(
                f"{layer.name()} comes from {layer.providerType()} and not from a file: save it as "
                "one first."
            )
        bbox = None
        if parameters.get("EXTENT"):
            wanted = self.parameterAsExtent(parameters, "EXTENT", context, layer.crs()).intersect(
                layer.extent()
            )
            if wanted.isEmpty():
                raise QgsProcessingException(f"The part asked for does not meet {layer.name()}.")
            bbox = (wanted.xMinimum(), wanted.yMinimum(), wanted.xMaximum(), wanted.yMaximum())

        def text(name):
            return self.parameterAsString(parameters, name, context).strip() or None

        return Request(
            source=layer.source(),
            target=self.parameterAsOutputLayer(parameters, "OUTPUT", context),
            scale=int(SCALES[self.parameterAsEnum(parameters, "SCALE", context)]),
            weights=text("WEIGHTS"),
            bbox=bbox,
            rgb=text("RGB"),
            value_range=text("RANGE"),
            ensemble=self.parameterAsBoolean(parameters, "ENSEMBLE", context),
            confidence=self.parameterAsOutputLayer(parameters, "CONFIDENCE", context) or None,
        )

    def _add_advanced(self, parameter):
        parameter.setFlags(parameter.flags() | QgsProcessingParameterDefinition.FlagAdvanced)
        self.addParameter(parameter)
