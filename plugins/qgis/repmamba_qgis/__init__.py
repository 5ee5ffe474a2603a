"""Rep-Mamba in the Processing toolbox of QGIS: any raster, at two, three or four times its
resolution.
"""


def classFactory(iface):
    """The plugin, for QGIS. iface: its window, None where it runs without one."""
    from .plugin import Plugin

    return Plugin()
