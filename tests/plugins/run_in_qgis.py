"""Run repmamba:upscale in a QGIS without windows, in the background as its dialog does.

Started by the Python of QGIS with a JSON object as its argument: plugins, the folder of the plugin;
command, that of repmamba; answers, of the dialog; cancel, whether to cancel when the first part is
done. The last line of the output is a JSON object: ok, progress in percent, and the log.
"""

import json
import sys

from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
)
from qgis.PyQt.QtCore import QEventLoop

told = json.loads(sys.argv[1])
application = QgsApplication([], False)
application.initQgis()
sys.path[:0] = [f"{QgsApplication.pkgDataPath()}/python/plugins", told["plugins"]]

from processing.core.Processing import Processing  # noqa: E402
from processing.core.ProcessingConfig import ProcessingConfig  # noqa: E402
from repmamba_qgis import classFactory  # noqa: E402

Processing.initialize()
plugin = classFactory(None)
plugin.initProcessing()
ProcessingConfig.setSettingValue("REPMAMBA_COMMAND", told["command"])
algorithm = QgsApplication.processingRegistry().createAlgorithmById("repmamba:upscale")

layer = QgsRasterLayer(told["answers"]["INPUT"], "scene")
QgsProject.instance().addMapLayer(layer)
context, feedback = QgsProcessingContext(), QgsProcessingFeedback(False)
context.setProject(QgsProject.instance())
answers = told["answers"] | {"INPUT": layer.id()}
task = QgsProcessingAlgRunnerTask(algorithm, answers, context, feedback)
loop, progress, ended = QEventLoop(), [], []


def on_progress(percent):
    progress.append(percent)
    if told["cancel"] and percent > 0:
        task.cancel()


def on_end(ok, results):
    ended.append(ok)
    loop.quit()


feedback.progressChanged.connect(on_progress)
task.executed.connect(on_end)
QgsApplication.taskManager().addTask(task)
loop.exec_()
plugin.unload()
print(json.dumps({"ok": ended[0], "progress": progress, "log": feedback.textLog()}))
