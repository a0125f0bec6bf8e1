"""A library that ends every process that imports it, as on a machine whose driver is broken."""

import os

os._exit(3)
