"""What `sandboxpool check` finds: state of an app that its requests share."""
