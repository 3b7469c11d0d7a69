"""The ILLUME method as a library. Import the submodules; this package imports nothing by itself."""
