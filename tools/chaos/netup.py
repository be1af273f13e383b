import sys
from rig import up

up(sys.argv[1], 3, sys.argv[2])
