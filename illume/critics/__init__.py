"""Machine critics: models that rate rationales, fitted on what people picked and turned down."""
