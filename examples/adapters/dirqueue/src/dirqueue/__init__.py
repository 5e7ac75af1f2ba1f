"A plug-in of PCM that runs tasks of PCM on dirqueue."
