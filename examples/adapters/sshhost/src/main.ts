// Starts the plug-in. Written by 'pcm adapter new'.

import { Sshhost, pollMilliseconds } from "./backend.js";
import { serve } from "./pcm_server.js";

serve(new Sshhost(), "runs tasks of PCM on sshhost", pollMilliseconds);
