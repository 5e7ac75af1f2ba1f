"""A plug-in of PCM: runs tasks of PCM on dirqueue."""
